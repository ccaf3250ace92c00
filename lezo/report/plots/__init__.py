"""The report's figures: for a paper's column as SVG and PDF files, and on the page in its colours."""
