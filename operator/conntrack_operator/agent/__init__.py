"""The half that runs on every node: it alone changes a kernel. Never imports kopf; its memory is counted."""
