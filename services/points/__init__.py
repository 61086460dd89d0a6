"""Points: the system of record for what a member owns.

It keeps a double-entry, append-only ledger of points and growth per member, evaluates the programme's earn
rules, and announces every posting. It refuses to know what a card, a group or a campaign is: others'
events reach it as facts, and nobody reads its tables.
"""
