"""What commands share: output, tables, errors, servers."""
