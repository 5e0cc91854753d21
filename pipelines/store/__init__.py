"""PostgreSQL: the tables and every statement that matters, named, in one place."""
