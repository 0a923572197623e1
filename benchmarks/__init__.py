"""Each module measures one thing: `python -m benchmarks.NAME` writes results/NAME.json and its table in the docs."""
