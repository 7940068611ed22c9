"""The ops that lie: what an op's schema says, what its version counters say, what its bytes say.

`schemas` reads what is declared, `content` reads bytes, `witnesses` runs one op and notes what all
three saw, `verdicts` and `devices` judge those notes (plain data), `examine` does both. `samples`,
`recipes` and `special` find inputs, `workers` runs many ops where none can take the program down,
and `survey` puts a whole namespace through it. Imported when somebody asks.
"""
