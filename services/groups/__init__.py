"""Groups: welfare groups, by place and by tag, and what is announced in them.

It knows the sites and what members are and bought, forms groups of them by schemes, decides alone who gets a
seat, and says what is due in a group. It refuses to know how chats work: what to set up reaches the messaging
side as events, who came and left is told to it, and nobody reads its tables.
"""
