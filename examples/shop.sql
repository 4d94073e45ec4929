-- A small shop: what the SQL example asks questions about.
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL);
CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT NOT NULL, price REAL NOT NULL);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers, day TEXT NOT NULL);
CREATE TABLE items (order_id INTEGER NOT NULL REFERENCES orders, product_id INTEGER NOT NULL REFERENCES products,
                    quantity INTEGER NOT NULL);

INSERT INTO customers VALUES (1, 'Ada', 'London'), (2, 'Blaise', 'Paris'), (3, 'Carl', 'Berlin'),
                             (4, 'Dorothy', 'London'), (5, 'Emmy', 'Berlin'), (6, 'Felix', 'Leipzig');
INSERT INTO products VALUES (1, 'lamp', 39.5), (2, 'chair', 120.0), (3, 'desk', 340.0), (4, 'shelf', 75.0),
                            (5, 'rug', 89.0);
INSERT INTO orders VALUES (1, 1, '2026-01-04'), (2, 2, '2026-01-09'), (3, 1, '2026-02-02'), (4, 3, '2026-02-17'),
                          (5, 4, '2026-02-20'), (6, 5, '2026-03-01'), (7, 1, '2026-03-08'), (8, 5, '2026-03-30');
INSERT INTO items VALUES (1, 1, 2), (1, 4, 1), (2, 3, 1), (2, 2, 4), (3, 1, 1), (4, 2, 2), (4, 4, 3), (5, 3, 1),
                         (6, 1, 1), (6, 2, 1), (7, 4, 2), (8, 3, 2), (8, 1, 4);
