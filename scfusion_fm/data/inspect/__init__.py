"""
Tell what files and atlases hold.

`scfusion doctor`: `doctor` finds it, `slots` looks at matrices, `doctor_text` writes it. `scfusion inspect`: `summary`
and `summary_text`.
"""
