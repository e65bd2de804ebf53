from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(kind="platform", target="fake_platform.board:Board", probe="fake_platform.plugin:look", priority=50)


def look():
    from pegboard.plugins.spec import Probe

    return Probe(True, True, "a board of cork")
