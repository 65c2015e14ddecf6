"""Published searches and simple baselines, to compare with. They use the contract and the tools of evopress/search."""
