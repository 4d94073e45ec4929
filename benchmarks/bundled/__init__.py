"""Training and measuring the bundled policy; see `r3agent/serve/bundled/model/README.md`."""
