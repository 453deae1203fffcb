"""Which shape and dtype every port has, at every size: stages tried on fake tensors, laws of sizes, bodies of loops."""
