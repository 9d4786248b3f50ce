"""Workers on the nodes of a Ray cluster. The only package that imports ray, and only once `--cluster` asks for it."""
