"""What makes and checks the book: execution, stamps, pages, dialect, site."""
