"""What nbval does not compare: stderr, where progress bars and the libraries' warnings go."""


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
