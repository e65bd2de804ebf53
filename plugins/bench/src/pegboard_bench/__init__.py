"""Load for servers that speak OpenAI's protocol, and what they did with it."""
