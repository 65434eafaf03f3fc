"""From a request to a list: sessions, retrieval, ranking, selection, web. Never imports training."""
