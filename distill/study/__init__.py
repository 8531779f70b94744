"""Studies: many runs planned, fitted and compared; tuned teachers; what each teacher contributes."""
