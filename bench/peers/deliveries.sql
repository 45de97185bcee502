-- The one table of the peers that commit one insert a request, and of pgbench.
CREATE TABLE deliveries (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    received_at timestamptz NOT NULL DEFAULT now(),
    body json NOT NULL
);
