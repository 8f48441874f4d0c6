"""What a study shows: tables, figures, and one page that holds both."""
