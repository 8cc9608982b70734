"""The API server: the only layer that talks to it. The agent's thin client and the controller's stand side by side."""
