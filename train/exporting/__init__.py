"""Networks for other runtimes: what is traced, how it is written and checked, and what lies beside it in an export's folder."""
