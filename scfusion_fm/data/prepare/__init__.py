"""`scfusion prepare`: from files to an atlas, in steps that can be interrupted."""
