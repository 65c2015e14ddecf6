"""Published searches, for comparison. They import the contract and the tools of the search room."""
