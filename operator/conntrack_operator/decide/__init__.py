"""Pure decisions: facts, wishes and time in; plans, specs and statuses out. No clock, file or socket here."""
