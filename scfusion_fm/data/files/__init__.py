"""
Read the files in which counts are exchanged, and bring them onto a vocabulary.

Formats: `readers` (AnnData, MuData, 10x; whole or open), `opened` and `stored` (matrices that stay in the file),
`container` (all of it), `old` (formats of before). What a file may do: `containment` (no links out of it), `sizes`,
`sparse`; its elements and arrays: `elements`, `arrays`; what is told of a broken one: `broken`. Which matrix is
RNA, ADT, raw counts: `modalities`; reading and checking it: `counts`; one table of cells: `obs`. Onto the vocabulary,
where unknown names, isotype controls and hashtags are left out: `align`; several files below one another: `stack`.
"""
