"""
Read the files in which counts are exchanged, and bring them onto a vocabulary.

Formats: `readers` (AnnData, MuData, 10x; whole or open) and `stored` (matrices that stay in the file). Which matrix is
RNA, ADT, raw counts: `modalities`; reading and checking it: `counts`; one table of cells: `obs`. Onto the vocabulary,
where unknown names, isotype controls and hashtags are left out: `align`; several files below one another: `stack`.
"""
