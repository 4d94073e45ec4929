"""Recording of running applications, whatever they are built with."""
