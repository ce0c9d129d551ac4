"""Training of the networks with Lightning: `xcube train`."""
