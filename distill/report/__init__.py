"""Reports: from records of scores to statistics, tables, figures and a page."""
