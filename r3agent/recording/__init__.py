"""Recording of running applications, built with or without LangGraph."""
