"""The rules, pure: no clock, database or messages.

`periods` for time, `products` for what is on sale, `cards` for chains of periods, `quotas` for how often,
`entitlements` for what a card gives, `basket` for an order's price and `search` for the best of them over
`assignment`, `payments`, `refunds` and `renewals` for money, `books` for what must add up.
"""
