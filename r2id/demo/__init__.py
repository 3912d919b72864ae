"""What `app.py` is made of; nothing else imports it."""
