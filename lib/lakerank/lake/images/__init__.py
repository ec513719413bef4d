"""Images that a table has by their addresses: files in a store or a folder, behind URLs, and pages of PDF files."""
