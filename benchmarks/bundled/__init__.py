"""Making and measuring the policy in the package; see `r3agent/serve/bundled/model/README.md`."""
