//! A database with every type, and everything else that a database can hold.

use testkit::server::PrivateServer;

/// Makes the databases `every` and `other`.
pub fn make(server: &PrivateServer) {
    for script in [NUMBERS, TEXTS, TIMES, BYTES, SHAPES, OBJECTS] {
        server.run(script.split(" ;;").map(str::trim).filter(|statement| !statement.is_empty()));
    }
    make_floats(server);
}

/// Bit patterns that a text of six or fifteen digits loses.
fn make_floats(server: &PrivateServer) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut conn = server.connect();
    let mut rows = vec![];
    while rows.len() < 3000 {
        #[allow(clippy::cast_possible_truncation, reason = "any bits will do")]
        let (float, double) = (f32::from_bits(next() as u32), f64::from_bits(next()));
        if float.is_finite() && double.is_finite() {
            rows.push((float, double));
        }
    }
    mysql::prelude::Queryable::exec_batch(&mut conn, "INSERT INTO every.floats (f, d) VALUES (?, ?)", rows)
        .expect("floats");
}

const NUMBERS: &str = r#"
CREATE DATABASE every CHARACTER SET latin1 COLLATE latin1_german1_ci ;;
CREATE DATABASE other CHARACTER SET utf8mb4 ;;
USE every ;;
SET sql_mode='NO_AUTO_VALUE_ON_ZERO' ;;
CREATE TABLE numbers (id BIGINT UNSIGNED PRIMARY KEY AUTO_INCREMENT, t TINYINT, s SMALLINT UNSIGNED ZEROFILL,
  m MEDIUMINT, i INT, b BIGINT, d DECIMAL(65,30), n DECIMAL(10,0) UNSIGNED, y YEAR, bo BOOL, f FLOAT(7,4), dd DOUBLE(20,6))
  AUTO_INCREMENT=77 ;;
INSERT INTO numbers VALUES (0,-128,0,-8388608,-2147483648,-9223372036854775808,-99999999999999999999999999999999999.123456789012345678901234567891,0,0,true,-123.4567,-12345678901234.654321),
 (18446744073709551614,127,65535,8388607,2147483647,9223372036854775807,0.000000000000000000000000000001,9999999999,2155,false,0.1,0.1),
 (3,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1901,NULL,NULL,NULL) ;;
CREATE TABLE floats (id INT AUTO_INCREMENT PRIMARY KEY, f FLOAT, d DOUBLE) ;;
INSERT INTO floats (f, d) VALUES (0.1, 0.1), (-0e0, -0e0), (1e-45, 5e-324), (3.4028234e38, 1.7976931348623157e308), (16777217, 9007199254740993), (NULL, NULL)
"#;

const TEXTS: &str = r#"
USE every ;;
SET NAMES utf8mb4 ;;
SET sql_mode='' ;;
CREATE TABLE texts (id INT PRIMARY KEY, l VARCHAR(50) CHARACTER SET latin1, u VARCHAR(50) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
  u3 TEXT CHARACTER SET utf8mb3, s VARCHAR(50) CHARACTER SET sjis, g CHAR(20) CHARACTER SET gbk, c2 VARCHAR(20) CHARACTER SET ucs2,
  c16 VARCHAR(20) CHARACTER SET utf16le, c32 MEDIUMTEXT CHARACTER SET utf32, cp VARCHAR(20) CHARACTER SET cp1251,
  sw VARCHAR(20) CHARACTER SET swe7, e ENUM('a','','é') CHARACTER SET utf8mb4, st SET('x','y','ß','z') CHARACTER SET latin1,
  lt LONGTEXT CHARACTER SET utf8mb4, a CHAR(5) CHARACTER SET ascii, bb VARCHAR(20) CHARACTER SET big5) ;;
INSERT INTO texts VALUES (1, 'plain', 'plain', 'plain', 'plain', 'plain', 'plain', 'plain', 'plain', 'plain', 'plain', 'a', 'x,y', 'plain', 'plain', 'plain'),
 (2, 'Zürich ÿ', 'Zürich 😀 \' \\ " \n \r \t \0 \Z', 'Zürich', '表予ソ', '縗', 'Ж', '😀', '😀', 'Привет', 'a', '', '', '-- \n;; DELIMITER $$', '', '功'),
 (3, '', '', '', '', '', '', '', '', '', '', NULL, NULL, NULL, NULL, NULL),
 (4, _binary 0x8182839D, _binary 0xC3A9, 'x', _binary 0x835C5C, _binary 0xBF5C, _binary 0x0000, 'a  ', 'b ', 'c ', 'å', 'é', 'ß,z', REPEAT('ä', 1000), 'a', 'x') ;;
INSERT IGNORE INTO texts (id, e, st) VALUES (5, 'nonsense', 'x,nonsense') ;;
CREATE TABLE wide (id INT PRIMARY KEY, s64 SET('a0','a1','a2','a3','a4','a5','a6','a7','a8','a9','b0','b1','b2','b3','b4','b5','b6','b7','b8','b9','c0','c1','c2','c3','c4','c5','c6','c7','c8','c9','d0','d1','d2','d3','d4','d5','d6','d7','d8','d9','e0','e1','e2','e3','e4','e5','e6','e7','e8','e9','f0','f1','f2','f3','f4','f5','f6','f7','f8','f9','g0','g1','g2','g3')) ;;
INSERT INTO wide VALUES (1, 18446744073709551615), (2, 9223372036854775809), (3, 0)
"#;

const TIMES: &str = r#"
USE every ;;
SET sql_mode='ALLOW_INVALID_DATES' ;;
SET time_zone='+00:00' ;;
CREATE TABLE times (id INT PRIMARY KEY, d DATE, t TIME, t6 TIME(6), dt DATETIME, dt3 DATETIME(3), ts TIMESTAMP NULL, ts6 TIMESTAMP(6) NULL) ;;
INSERT INTO times VALUES (1, '0000-00-00', '-838:59:59', '838:59:59.999999', '0000-00-00', '0000-00-00', 0, 0),
 (2, '2026-02-31', '00:00:00', '-00:00:00.000001', '9999-12-31 23:59:59', '1000-01-01 00:00:00.001', '1970-01-01 00:00:01', '2038-01-19 03:14:07.999999'),
 (3, '2026-00-10', '24:00:00', '34:00:00.5', '2026-10-25 02:30:00', '0001-01-01', '2026-10-25 00:30:00', '2026-10-25 01:30:00.000001'),
 (4, NULL, NULL, NULL, NULL, NULL, NULL, NULL) ;;
SET sql_mode=DEFAULT
"#;

const BYTES: &str = r#"
USE every ;;
CREATE TABLE bytes (id INT PRIMARY KEY, b BINARY(5), v VARBINARY(300), bl BLOB, lb LONGBLOB, b1 BIT(1), b64 BIT(64), b9 BIT(9), u UUID, i6 INET6, i4 INET4, j JSON, c VARCHAR(500) COMPRESSED, cb BLOB COMPRESSED) ;;
INSERT INTO bytes VALUES (1, 'a', 0x00FF27, '', REPEAT(0x00FF, 400000), b'1', 18446744073709551615, b'100000001', '123e4567-e89b-12d3-a456-426655440000', '::ffff:192.0.2.1', '192.0.2.1', '{"a": [1, "é"]}', REPEAT('x', 400), REPEAT('y', 400)),
 (2, 0x0000000000, '', NULL, '', 0, 0, 0, NULL, '::', '0.0.0.0', 'null', '', ''),
 (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL) ;;
CREATE TABLE large (id INT PRIMARY KEY, a LONGBLOB, b LONGBLOB) ;;
INSERT INTO large SELECT seq, REPEAT(CHAR(seq), 3000000), REPEAT('z', 3000000) FROM seq_1_to_3
"#;

const SHAPES: &str = r#"
USE every ;;
CREATE TABLE shapes (id INT PRIMARY KEY, g GEOMETRY NOT NULL, p POINT, l LINESTRING, po POLYGON, gc GEOMETRYCOLLECTION, SPATIAL INDEX (g)) ;;
INSERT INTO shapes VALUES (1, ST_GeomFromText('POINT(0.1 -0.2)', 4326), POINT(1e-300, 3), ST_GeomFromText('LINESTRING(0 0,1 1,2 3)'), ST_GeomFromText('POLYGON((0 0,1 0,1 1,0 0))'), ST_GeomFromText('GEOMETRYCOLLECTION(POINT(1 1),LINESTRING(0 0,1 1))')),
 (2, POINT(0,0), NULL, NULL, NULL, NULL) ;;
CREATE TABLE `odd ``name` (`a:b ?` INT PRIMARY KEY, `é` INT INVISIBLE DEFAULT 3, v INT AS (`a:b ?` + 1) VIRTUAL, p VARCHAR(20) AS (CONCAT('x', `a:b ?`)) STORED,
  w INT WITHOUT SYSTEM VERSIONING CHECK (w > 0), dflt VARCHAR(40) DEFAULT (CONCAT('a', UUID())), KEY (v)) COMMENT 'Grüße; ''quoted'' \\ --' ;;
INSERT INTO `odd ``name` (`a:b ?`, `é`, w, dflt) VALUES (1, 2, 3, 'x'), (2, 9, 3, 'y') ;;
CREATE TABLE `100% / ..` (a INT) ;;
INSERT INTO `100% / ..` VALUES (1), (1), (NULL) ;;
CREATE TABLE empty (a INT, b TEXT) ;;
CREATE TABLE parts (id INT PRIMARY KEY, x INT) PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (100), PARTITION p1 VALUES LESS THAN MAXVALUE) ;;
INSERT INTO parts SELECT seq, seq * 7 FROM seq_1_to_300 ;;
CREATE TABLE many (id INT PRIMARY KEY, t VARCHAR(200)) ;;
INSERT INTO many SELECT seq, REPEAT(seq, 20) FROM seq_1_to_20000 ;;
CREATE TABLE my_isam (id INT PRIMARY KEY AUTO_INCREMENT, t TEXT) ENGINE=MyISAM ;;
INSERT INTO my_isam (t) VALUES ('a'), ('b') ;;
CREATE TABLE aria_t (id INT, t TEXT) ENGINE=Aria TRANSACTIONAL=1 ;;
INSERT INTO aria_t VALUES (1, 'a') ;;
CREATE TABLE mem (id INT) ENGINE=MEMORY ;;
INSERT INTO mem VALUES (1), (2) ;;
CREATE TABLE csv_t (id INT NOT NULL) ENGINE=CSV ;;
INSERT INTO csv_t VALUES (1), (2) ;;
CREATE TABLE history (id INT PRIMARY KEY, x INT) WITH SYSTEM VERSIONING ;;
INSERT INTO history VALUES (1, 1), (2, 2) ;;
UPDATE history SET x = 3 WHERE id = 1 ;;
DELETE FROM history WHERE id = 2 ;;
CREATE TABLE history2 (id INT PRIMARY KEY, x INT, f TIMESTAMP(6) GENERATED ALWAYS AS ROW START, u TIMESTAMP(6) GENERATED ALWAYS AS ROW END, PERIOD FOR SYSTEM_TIME (f, u)) WITH SYSTEM VERSIONING ;;
INSERT INTO history2 (id, x) VALUES (1, 1) ;;
UPDATE history2 SET x = 3
"#;

const OBJECTS: &str = r#"
USE every ;;
CREATE TABLE child (id INT PRIMARY KEY, n BIGINT UNSIGNED, f INT, CONSTRAINT to_numbers FOREIGN KEY (n) REFERENCES numbers (id) ON DELETE CASCADE,
  CONSTRAINT to_floats FOREIGN KEY (f) REFERENCES floats (id)) ;;
INSERT INTO child VALUES (1, 0, 1), (2, 3, NULL) ;;
CREATE SEQUENCE seq START WITH 100 INCREMENT BY 5 ;;
DO NEXTVAL(seq) ;;
CREATE TABLE uses_seq (id INT DEFAULT (NEXTVAL(every.seq)) PRIMARY KEY, x INT) ;;
INSERT INTO uses_seq (x) VALUES (1) ;;
CREATE VIEW z_second AS SELECT id, x FROM uses_seq WHERE x > 0 WITH CASCADED CHECK OPTION ;;
SET NAMES latin1 COLLATE latin1_german2_ci ;;
SET sql_mode='ANSI_QUOTES,STRICT_TRANS_TABLES' ;;
CREATE FUNCTION twice(x INT) RETURNS INT DETERMINISTIC COMMENT 'it''s' RETURN x * 2 ;;
CREATE PROCEDURE speak(INOUT "what" VARCHAR(20) CHARACTER SET utf8mb4) BEGIN DECLARE a INT; SET a = 1; SELECT 'Grüß \'' INTO what; END ;;
CREATE PROCEDURE `odd ``proc` () SELECT 1 ;;
SET NAMES utf8mb4 ;;
SET sql_mode='' ;;
CREATE SQL SECURITY INVOKER VIEW a_first AS SELECT a.id, twice(b.x) AS y FROM z_second a JOIN uses_seq b ON true ;;
CREATE TRIGGER t1 BEFORE INSERT ON child FOR EACH ROW SET NEW.f = COALESCE(NEW.f, 1) ;;
CREATE TRIGGER t2 BEFORE INSERT ON child FOR EACH ROW FOLLOWS t1 BEGIN SET @x = 'ü;'; END ;;
SET time_zone='+05:00' ;;
CREATE EVENT ev ON SCHEDULE EVERY 1 DAY STARTS '2030-01-01 00:00:00' DISABLE COMMENT 'é' DO BEGIN DELETE FROM every.child; END ;;
SET sql_mode='ORACLE' ;;
CREATE PACKAGE pack AS FUNCTION one RETURN INT; END ;;
CREATE PACKAGE BODY pack AS FUNCTION one RETURN INT AS BEGIN RETURN 1; END; END ;;
SET sql_mode='' ;;
CREATE TABLE other.t (id INT PRIMARY KEY) ;;
INSERT INTO other.t VALUES (1) ;;
CREATE USER reader@'%' IDENTIFIED BY 'it''s a secret' ;;
CREATE ROLE clerk ;;
GRANT SELECT ON every.* TO clerk ;;
GRANT clerk TO reader@'%' ;;
CREATE DEFINER=reader@'%' VIEW other.v AS SELECT id FROM every.z_second
"#;
