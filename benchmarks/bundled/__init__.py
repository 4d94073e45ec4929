"""How the policy in the package was made and measured; see `model/README.md`."""
