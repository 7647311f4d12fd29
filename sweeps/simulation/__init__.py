"""Early stopping without training: recorded or synthetic learning curves through the schedulers themselves."""
