"""From a request to a list: sessions, retrieval, ranking, the HTTP API. Never imports training."""
