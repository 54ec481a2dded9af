"""Say what files and atlases hold: `scfusion doctor` and `scfusion inspect`."""
