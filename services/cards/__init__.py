"""Cards: paid membership cards, bought for a period, that lower prices at the till.

It sells products, keeps each card as a chain of bought periods, finds the best price of a basket under the
benefits that a member holds, and records every use. It refuses to know how points are kept or who pays
out: orders by points and refunds reach others as events, and nobody reads its tables.
"""
