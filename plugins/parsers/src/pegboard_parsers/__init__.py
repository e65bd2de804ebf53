"""Tool calls and reasoning, told apart from content while the text of an answer comes."""
