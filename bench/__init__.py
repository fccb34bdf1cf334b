"""The benchmarks: `python -m bench [a b c d e]`. Each figure stands beside the bound that it has to hold."""
