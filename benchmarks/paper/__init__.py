"""Protocol of Reflect, Retry, Reward (arXiv 2505.24726), run by the command line of r3agent."""
