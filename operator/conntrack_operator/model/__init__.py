"""Pure data: what people ask for, what a node must do, what a node is. No clock, file or socket here."""
