FROM python:3.13.15-slim-trixie AS build
COPY . /source
RUN python -m venv /app && /app/bin/pip install --no-cache-dir '/source[web,webhooks]'

FROM python:3.13.15-slim-trixie
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/mailglass mailglass
USER 10001
WORKDIR /var/lib/mailglass
CMD ["celery", "-A", "mailglass_reconcile", "worker", "--loglevel", "info"]
