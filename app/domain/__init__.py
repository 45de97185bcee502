"""The rules, pure: what an event is, how state folds, what changed. Knows no database, no web, no Jasper."""
