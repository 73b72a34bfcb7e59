"""Being here makes this folder's modules (`stored_results`, `test_record`) importable from its subfolders."""
