//! Values are found where names say so, in texts whole and cut.

use std::time::Duration;

use proptest::prelude::*;

use super::super::budget::thread_time;
use super::super::edit::{Edit, apply};
use super::*;

fn masked(text: &str) -> String {
    let found = named(text, &mut Budget::new(Duration::from_secs(60))).expect("in time");
    let edit = |Found { range, quote, .. }: Found| Edit { range, with: format!("{quote}[redacted]{quote}") };
    apply(text.into(), &found.into_iter().map(edit).collect::<Vec<_>>()).into_owned()
}

#[test]
fn a_private_key_behind_a_name_is_taken_whole() {
    for (before, behind) in [
        ("PRIVATE_KEY=", "\nnext"),
        ("key: ", " x"),
        ("Your private key:\n\n", ""),
        ("Enter your password:\n", ""),
        ("loaded private_key=", "; x"),
        (r#"{"m":"cannot read PRIVATE_KEY="#, r#"","n":"x"}"#),
    ] {
        for newline in ["\\n", "\n", "\\\\n"] {
            for kind in ["RSA PRIVATE KEY", "PRIVATE KEY", "PGP PRIVATE KEY BLOCK"] {
                let lines = format!("{newline}MIICANARY{newline}Zq00+x/={newline}");
                let key = |inside: &str| format!("{before}-----BEGIN {kind}-----{inside}-----END {kind}-----{behind}");
                assert_eq!(masked(&key(&lines)), key("[redacted]"));
            }
        }
    }
}

#[test]
fn values_after_a_credentials_name_are_found() {
    for (raw, expected) in [
        (r#"{"access_token": "CANARY", "n": 1}"#, r#"{"access_token": "[redacted]", "n": 1}"#),
        (r#"{"a":{"PASSWORD":"CAN\"ARY"}}"#, r#"{"a":{"PASSWORD":"[redacted]"}}"#),
        (r#"{"secret":"CANARY\\","n":"x"}"#, r#"{"secret":"[redacted]","n":"x"}"#),
        (r#"{"pin": 1234, "n": 1}"#, r#"{"pin": "[redacted]", "n": 1}"#),
        (r#"{"token": null, "pwd": "", "secret": true}"#, r#"{"token": null, "pwd": "", "secret": true}"#),
        (r#"{"credentials": {"a": ["}", 1]}, "n": 1}"#, r#"{"credentials": "[redacted]", "n": 1}"#),
        (r#"{"acce\u0073s_token":"CANARY"}"#, r#"{"acce\u0073s_token":"[redacted]"}"#),
        (r#"{"body":"{\"token\":\"CAN\\\"ARY\",\"n\":1}"}"#, r#"{"body":"{\"token\":\"[redacted]\",\"n\":1}"}"#),
        (r#"{"body":"{\"pin\":12,\"n\":1}"}"#, r#"{"body":"{\"pin\":\"[redacted]\",\"n\":1}"}"#),
        (r#"{"body":"{\"token\":\"CANA","n":1}"#, r#"{"body":"{\"token\":\"[redacted]","n":1}"#),
        (r#"{"token":"CANA"#, r#"{"token":"[redacted]"#),
        (r#"cut"} {"token":"CANARY"}"#, r#"cut"} {"token":"[redacted]"}"#),
        (
            "got https://u:CANARY@bank/x?a=1&access_token=CANARY&b=2",
            "got https://[redacted]@bank/x?a=1&access_token=[redacted]&b=2",
        ),
        ("Authorization: Bearer CANARY, next", "Authorization: [redacted], next"),
        ("Set-Cookie: a=CANARY; Path=/\nnext", "Set-Cookie: [redacted]\nnext"),
        ("password=CANARY; x", "password=[redacted]; x"),
        (r#"password: Some("CANARY") x"#, r#"password: Some("[redacted]") x"#),
        (r#"{"m":"pin: Secret(\"CANARY\")","n":"x"}"#, r#"{"m":"pin: Secret(\"[redacted]\")","n":"x"}"#),
        (r#"{"m":"password: foo(","n":"x"}"#, r#"{"m":"password: [redacted]","n":"x"}"#),
        ("token=b'CANARY', x", "token=[redacted]', x"),
        (r#"token=b"CANARY's", x"#, r#"token=[redacted]", x"#),
        ("password: Some(\n    \"CANARY\",\n), x", "password: Some(\n    \"[redacted]\",\n), x"),
        ("\"token\": &Some(\n    \"CANARY\",\n), x", "\"token\": &Some(\n    \"[redacted]\",\n), x"),
        ("pin=new Secret('CANARY'), x", "pin=new Secret('[redacted]'), x"),
        ("pin=secrets.of(b'CANARY'), x", "pin=secrets.of(b'[redacted]'), x"),
        (r#"{"m":"password: foo(","n":")"}"#, r#"{"m":"password: [redacted]","n":")"}"#),
        (r#"token: Pair("CANARY", "CANARY"), x"#, "token: [redacted], x"),
        ("cookies: ['CANARY', 'CANARY'], x", "cookies: [redacted], x"),
        ("cookie: Some(\n    \"CANARY\",\n), x", "cookie: Some(\n    \"[redacted]\",\n), x"),
        (r#"token: Mutex { data: "CANARY", .. } }, x"#, "token: [redacted] }, x"),
        (r#"cookie: Some("CANARY"), x"#, r#"cookie: Some("[redacted]"), x"#),
        ("{ tokens: [ 'CANARY', 'CANARY' ], n: [ 1 ] }", "{ tokens: [redacted], n: [ 1 ] }"),
        ("{'credentials': {'user': 'CANARY', 'x': \"CANA}RY\"}, 'n': 1}", "{'credentials': [redacted], 'n': 1}"),
        (r#"{"m":"tokens = [\"CANARY\", \"CANARY\"] x","n":"x"}"#, r#"{"m":"tokens = [redacted] x","n":"x"}"#),
        (r#"{"m":"tokens = [\"CANARY\", \"CANA","n":["x"]}"#, r#"{"m":"tokens = [redacted]","n":["x"]}"#),
        ("token=[CANARY and it's no list", "token=[redacted] and it's no list"),
        ("password -> CANARY, x", "password -> [redacted], x"),
        (r#"os.environ["API_KEY"] = "CANARY" x"#, r#"os.environ["API_KEY"] = "[redacted]" x"#),
        (r#"{"m":"$cfg['password'] = 'CANARY';","n":"x"}"#, r#"{"m":"$cfg['password'] = '[redacted]';","n":"x"}"#),
        (
            r#"{"m":"cfg[\"password\"] = \"CANARY\";","n":"x"}"#,
            r#"{"m":"cfg[\"password\"] = \"[redacted]\";","n":"x"}"#,
        ),
        (r#"config["password"]: CANARY; x"#, r#"config["password"]: [redacted]; x"#),
        (r#"<entry key="password">CANARY</entry> x"#, r#"<entry key="password">[redacted]</entry> x"#),
        (r#"<entry key="db.password">CANARY</entry> x"#, r#"<entry key="db.password">[redacted]</entry> x"#),
        (r#"<add key="token" value="CANARY"/> x"#, r#"<add key="token" value="[redacted]"/> x"#),
        (r#"<auth key="topsecret"/> x"#, r#"<auth key="[redacted]"/> x"#),
        (r#"<input key="topsecret">Label"#, r#"<input key="[redacted]">Label"#),
        (r#"<auth key="topsecret"></auth><n>x</n>"#, r#"<auth key="[redacted]"></auth><n>x</n>"#),
        (r#"<auth key="topsecret"#, r#"<auth key="[redacted]"#),
        (r#"<span id="password">CANARY</span> x"#, r#"<span id="password">[redacted]</span> x"#),
        (r#"<span id="password">CANA"#, r#"<span id="password">[redacted]"#),
        (r#"<label id="password">Kennwort</label>"#, r#"<label id="password">Kennwort</label>"#),
        (r#"<div id="password"><p>kept</p></div>"#, r#"<div id="password"><p>kept</p></div>"#),
        (r#"<p id="password">is not kept</p>"#, r#"<p id="password">is not kept</p>"#),
        (r#"{"id":"password","value":"CANARY"}, x"#, r#"{"id":"password","value":"[redacted]"}, x"#),
        (
            r#"{"field":"pin","rejectedValue":"CANARY"}, {"field":"n","value":"x"}"#,
            r#"{"field":"pin","rejectedValue":"[redacted]"}, {"field":"n","value":"x"}"#,
        ),
        ("[\"password\"]=>\n  string(6) \"CANARY\"\n", "[\"password\"]=>\n  string(6) \"[redacted]\"\n"),
        ("password: &anchor CANARY\nn: x", "password: [redacted]\nn: x"),
        ("password: !!str CANARY\nn: x", "password: [redacted]\nn: x"),
        ("password: !!str &a 'CANARY CANARY'\nn: x", "password: [redacted]'\nn: x"),
        ("password: ! CANARY\nn: x", "password: [redacted]\nn: x"),
        ("password: &CANARY\nn: x", "password: [redacted]\nn: x"),
        ("password: !CANARY{1\nn: x", "password: [redacted]\nn: x"),
        ("a pin: &amp; x", "a pin: &amp; x"),
        ("pin:&n=x", "pin:&n=x"),
        (r#"{"key": "topsecret", "n": 1}"#, r#"{"key": "[redacted]", "n": 1}"#),
        ("userPassword:: CANARY\nnext", "userPassword:: [redacted]\nnext"),
        ("if password == \"CANARY\" {", "if password == \"[redacted]\" {"),
        ("<b>Password:</b> CANARY<br>x", "<b>Password:</b> [redacted]<br>x"),
        ("Password:<br>\n<code class='x'>CANARY</code> x", "Password:<br>\n<code class='x'>[redacted]</code> x"),
        ("<td>Password: <strong>CANARY</strong> x", "<td>Password: <strong>[redacted]</strong> x"),
        ("<label>Password:</label> <input> <a>x</a>", "<label>Password:</label> <input> <a>x</a>"),
        ("<tr><th>Password</th> <td>CANARY</td><td>x</td>", "<tr><th>Password</th> <td>[redacted]</td><td>x</td>"),
        ("<dt>PIN:</dt><dd>CANARY</dd><dd>x</dd>", "<dt>PIN:</dt><dd>[redacted]</dd><dd>x</dd>"),
        (r#"[{"token\\":[]}]"#, r#"[{"token\\":"[redacted]"}]"#),
        (r#"[["token\"=>"]]"#, r#"[["token\"=>"]]"#),
        (r#"["<token=>"]"#, r#"["<token=>"]"#),
        (r#"["x \"token\": ", "y"]"#, r#"["x \"token\": ", "y"]"#),
        (r#"x \"token\": "CANARY" y"#, r#"x \"token\": "[redacted]" y"#),
        (r#"<Password xml:lang="a>b">CANARY</Password>"#, r#"<Password xml:lang="a>b">[redacted]</Password>"#),
        (r#"<x key='pin' note='a>b'>CANARY</x>"#, r#"<x key='pin' note='a>b'>[redacted]</x>"#),
        (r#"<pin lang="a>CANARY</pin>"#, r#"<pin lang="a>[redacted]</pin>"#),
        ("A=x\nPASSWORD=;CANARY\nB=1", "A=x\nPASSWORD=[redacted]\nB=1"),
        ("user: x\npassword: )CANARY", "user: x\npassword: [redacted]"),
        ("tokens:\n  access_token: CANARY\n  refresh: CANARY\nx: 1", "tokens:\n  [redacted]\nx: 1"),
        ("secrets:\n  \"user\": \"bob\"\n  'backup': CANARY\nx: 1", "secrets:\n  [redacted]\nx: 1"),
        ("secrets:\n  # of all\n  <<: *d\n  backup: CANARY\nx: 1", "secrets:\n  # of all\n  [redacted]\nx: 1"),
        ("tokens:\n# first\n- CANARY\n- CANARY\nx: 1", "tokens:\n# first\n[redacted]\nx: 1"),
        ("secrets:\n\tstripe: CANARY\nx: 1", "secrets:\n\t[redacted]\nx: 1"),
        ("a token:\n    at x (y.js:1:2)\n    Caused by: z", "a token:\n    [redacted] x (y.js:1:2)\n    Caused by: z"),
        ("<p>Passwort:&nbsp;<b>CANARY</b></p>", "<p>Passwort:&nbsp;<b>[redacted]</b></p>"),
        ("<p>PIN: <kbd>CANARY</kbd></p>", "<p>PIN: <kbd>[redacted]</kbd></p>"),
        ("*Password:* CANARY x", "*Password:* [redacted] x"),
        ("<th><b>Your password</b>:</th> <td>CANARY</td>", "<th><b>Your password</b>:</th> <td>[redacted]</td>"),
        ("<dt>API key</dt><dd>CANARY</dd>", "<dt>API key</dt><dd>[redacted]</dd>"),
        (r#"<dt id="pin">PIN</dt> <dd>CANARY</dd>"#, r#"<dt id="pin">PIN</dt> <dd>[redacted]</dd>"#),
        ("<th>User</th><th>Password</th></tr><tr><td>x</td>", "<th>User</th><th>Password</th></tr><tr><td>x</td>"),
        ("`password`: `CANARY` x", "`password`: [redacted] x"),
        (r#"{"m":"password:\r\n\n  CANARY\nx"}"#, r#"{"m":"password:\r\n\n  [redacted]\nx"}"#),
        (r#"{"m":"{\"m\":\"pin:\\tCANARY\\nx\"}"}"#, r#"{"m":"{\"m\":\"pin:\\t[redacted]\\nx\"}"}"#),
        (r#"{"m":"password:\n","n":"x"}"#, r#"{"m":"password:\n","n":"x"}"#),
        (r#"{"to":"sftp:\/\/u:CANARY@host\/x"}"#, r#"{"to":"sftp:\/\/[redacted]@host\/x"}"#),
        (r#"{"to":"https:\u002f\u002fu:CANARY@host"}"#, r#"{"to":"https:\u002f\u002f[redacted]@host"}"#),
        ("CLIENT_SECRET=CAN)ARY\nN=x", "CLIENT_SECRET=[redacted]\nN=x"),
        (r#"{"m":"x\nexport TOKEN=CAN;ARY}&\nN=x"}"#, r#"{"m":"x\nexport TOKEN=[redacted]\nN=x"}"#),
        ("> X-Api-Key: CAN,ARY\r\n> n: x", "> X-Api-Key: [redacted]\r\n> n: x"),
        ("spring.password={cipher}CANARY\nn=x", "spring.password=[redacted]\nn=x"),
        ("password=CANARY;n=x", "password=[redacted];n=x"),
        ("password: 'CAN''ARY' x", "password: '[redacted]' x"),
        ("get(url, auth=('CANARY', 'CANARY'), n='x')", "get(url, auth=[redacted], n='x')"),
        ("tokens = {'CANARY', 'CANARY'} x", "tokens = [redacted] x"),
        (
            r#"{"X-Auth-Token":[]string{"CANARY"}, "N":[]string{"x"}}"#,
            r#"{"X-Auth-Token":[]string"[redacted]", "N":[]string{"x"}}"#,
        ),
        (r#" Password: (string) (len=6) "CANARY","#, r#" Password: (string) (len=6) "[redacted]","#),
        (r#"const apiKey: string = "CANARY"; x"#, r#"const apiKey: string = "[redacted]"; x"#),
        ("client_secret: str = 'CANARY'", "client_secret: str = '[redacted]'"),
        ("credentials:\n  user: CANARY\n  value: CANARY\nn: x", "credentials:\n  [redacted]\nn: x"),
        ("Enter your password:\nUser: jo", "Enter your password:\nUser: jo"),
        (r#"{"m":"passwords:\n  jo: CANARY\n  eva: CANARY\nn: x"}"#, r#"{"m":"passwords:\n  [redacted]\nn: x"}"#),
        ("<pin>CAN<![CDATA[<]]>ARY</pin><n>x</n>", "<pin>[redacted]</pin><n>x</n>"),
        ("<pin>CAN<!-- x -->ARY</pin><n>x</n>", "<pin>[redacted]</pin><n>x</n>"),
        ("name=password&value=CANARY&n=x", "name=password&value=[redacted]&n=x"),
        (
            "f[0][name]=pin&f[0][value]=CANARY&f[1][name]=n&f[1][value]=x",
            "f[0][name]=pin&f[0][value]=[redacted]&f[1][name]=n&f[1][value]=x",
        ),
        ("**Password:** CANARY x", "**Password:** [redacted] x"),
        ("password = \"\"\"CANARY\nCANARY\"\"\" x", "password = \"\"\"[redacted]\"\"\" x"),
        ("INFO auth: password: CANARY x", "INFO auth: password: [redacted] x"),
        ("credentials:\n  password: 'CANARY'\n", "credentials:\n  [redacted]\n"),
        ("auth = token = CANARY", "auth = token = [redacted]"),
        ("auth = password = CANARY", "auth = password = [redacted]"),
        ("auth: password= CANARY", "auth: password= [redacted]"),
        ("token: CANARYxPw= x", "token: [redacted] x"),
        ("contraseña: CANARY, n: x", "contraseña: [redacted], n: x"),
        (
            "<p><name>pin</name><value>CANARY</value></p><value>x</value>",
            "<p><name>pin</name><value>[redacted]</value></p><value>x</value>",
        ),
        ("<name>pin</name><value><string>CANARY</string></value>", "<name>pin</name><value>[redacted]</value>"),
        ("<param name=\"password\">CANARY</param><n>x</n>", "<param name=\"password\">[redacted]</param><n>x</n>"),
        (
            "<a:Attribute Name='pin'><a:V>CANARY</a:V></a:Attribute><n>x</n>",
            "<a:Attribute Name='pin'>[redacted]</a:Attribute><n>x</n>",
        ),
        ("<key>password</key>\n<string>CANARY</string>", "<key>[redacted]</key>\n<string>[redacted]</string>"),
        (
            "<input name=\"pin\" value=\"CANARY\">Label<n>x</n>",
            "<input name=\"pin\" value=\"[redacted]\">Label<n>x</n>",
        ),
        ("<input name=\"pin\">Label", "<input name=\"pin\">Label"),
        ("<meta content=\"CANARY\" name=\"csrf-token\">", "<meta content=\"[redacted]\" name=\"csrf-token\">"),
        ("<input type=\"password\" value=\"CANARY\">", "<input type=\"password\" value=\"[redacted]\">"),
        ("password = '''CANARY\n'CANARY''' x", "password = '''[redacted]''' x"),
        (
            "\u{1b}[3mpassword\u{1b}[0m\u{1b}[2m=\u{1b}[0m\"CANARY\" x",
            "\u{1b}[3mpassword\u{1b}[0m\u{1b}[2m=\u{1b}[0m\"[redacted]\" x",
        ),
        (
            r#"{"m":"\u001b[36mpin\u001b[0m=\u001b[35mCANARY\u001b[0m"}"#,
            r#"{"m":"\u001b[36mpin\u001b[0m=\u001b[35m[redacted]\u001b[0m"}"#,
        ),
        (
            "\u{1b}[34;1m\"password\"\u{1b}[0m\u{1b}[1;39m:\u{1b}[0m \u{1b}[0;32m\"CANARY\"\u{1b}[0m",
            "\u{1b}[34;1m\"password\"\u{1b}[0m\u{1b}[1;39m:\u{1b}[0m \u{1b}[0;32m\"[redacted]\"\u{1b}[0m",
        ),
        ("Authorization: Bearer \u{1b}[33mCANARY\u{1b}[0m x", "Authorization: [redacted]\u{1b}[0m x"),
        (
            "\u{1b}[01;31m\u{1b}[Kpassword\u{1b}[m\u{1b}[K=CANARY x",
            "\u{1b}[01;31m\u{1b}[Kpassword\u{1b}[m\u{1b}[K=[redacted] x",
        ),
        ("password: \u{1b}[1;31mCANARY\u{1b}[0m x", "password: \u{1b}[1;31m[redacted]\u{1b}[0m x"),
        (r#"{"m":"pin=\u001b[31mCANARY\u001b[0m"}"#, r#"{"m":"pin=\u001b[31m[redacted]\u001b[0m"}"#),
        (
            r#"{"next":"https:\/\/b\/?token=CA\/NARY\u0026x=1"}"#,
            r#"{"next":"https:\/\/b\/?token=[redacted]\u0026x=1"}"#,
        ),
        ("<s:Password>CANARY</s:Password><n>1</n>", "<s:Password>[redacted]</s:Password><n>1</n>"),
        ("<pin a='1'>CANARY</pin><token/><n>1</n>", "<pin a='1'>[redacted]</pin><token/><n>1</n>"),
        ("<pin><a>CANARY</a> CANARY</pin><n>1</n>", "<pin>[redacted]</pin><n>1</n>"),
        ("<pin><![CDATA[CAN", "<pin>[redacted]"),
        ("{token: 'CANARY', n: 1}", "{token: '[redacted]', n: 1}"),
        (
            r#"[{"name":"api_key","value":"CANARY"}, {"name":"n","value":"x"}]"#,
            r#"[{"name":"api_key","value":"[redacted]"}, {"name":"n","value":"x"}]"#,
        ),
        (
            r#"[{"key":"api_key","value":"CANARY"}, {"key":"n","value":"x"}]"#,
            r#"[{"key":"[redacted]","value":"[redacted]"}, {"key":"[redacted]","value":"x"}]"#,
        ),
        (
            r#"{"value":"CANARY","name":"pin"}, {"value":"x","name":"n"}"#,
            r#"{"value":"[redacted]","name":"pin"}, {"value":"x","name":"n"}"#,
        ),
        (
            r#"{"a":"{\"value\":\"CANARY\",\"name\":\"pin\"}"}"#,
            r#"{"a":"{\"value\":\"[redacted]\",\"name\":\"pin\"}"}"#,
        ),
        ("<input value='CANARY' name=\"csrf_token\">", "<input value='[redacted]' name=\"csrf_token\">"),
        ("Authorization: ApiKey CANARY, next", "Authorization: [redacted], next"),
        (r#"{"m":"password=CAN\u00e9ARY\u0026x=1"}"#, r#"{"m":"password=[redacted]\u0026x=1"}"#),
        (r#"{"m":"{\"m\":\"password=CAN\\u00e9ARY\\/\"}"}"#, r#"{"m":"{\"m\":\"password=[redacted]\"}"}"#),
        (r#"secret := "CANARY"; n := 1"#, r#"secret := "[redacted]"; n := 1"#),
        ("pin:=1234;n:=1", "pin:=[redacted];n:=1"),
        ("['token' => 'CANARY', 'n' => 'x']", "['token' => '[redacted]', 'n' => 'x']"),
        (r#"{"token" => "CANARY", "n" => "x"}"#, r#"{"token" => "[redacted]", "n" => "x"}"#),
        (r#"{"pin"=>1234, "n"=>1}"#, r#"{"pin"=>"[redacted]", "n"=>1}"#),
        (r#"{"secrets" => {"a" => "}"}, "n" => 1}"#, r#"{"secrets" => "[redacted]", "n" => 1}"#),
        ("{:token => CANARY, :n => x}", "{:token => [redacted], :n => x}"),
        ("[password] => CANARY\n[n] => x", "[password] => [redacted]\n[n] => x"),
        ("café: naïve = 1 > 0, account: 5", "café: naïve = 1 > 0, account: 5"),
    ] {
        assert_eq!(masked(raw), expected);
    }
}

#[test]
fn values_of_flags_are_found_on_command_lines() {
    for (raw, expected) in [
        ("pull --password CANARY --user jo", "pull --password [redacted] --user jo"),
        ("pull --api-key 'CAN ARY' -v", "pull --api-key '[redacted]' -v"),
        ("--api_key \t \"CAN ARY\" -v", "--api_key \t \"[redacted]\" -v"),
        ("pull --password=CANARY --token Bearer CANARY x", "pull --password=[redacted] --token [redacted] x"),
        ("curl --cookie a=CANARY https://b/", "curl --cookie [redacted] https://b/"),
        (r#"{"c":"x --pin 1234","n":1}"#, r#"{"c":"x --pin [redacted]","n":1}"#),
        (r#"{"c":"x --token \"CAN ARY\"","n":1}"#, r#"{"c":"x --token \"[redacted]\"","n":1}"#),
    ] {
        assert_eq!(masked(raw), expected);
    }
    for plain in [
        "pull --password --verbose x",
        "pull --password",
        "pull --password\nnext",
        "pull --user jo --shipping fast --limit 100 --token-type x",
        "--password is required; without --token or --secret.",
        "usage: pull [--token TOKEN] [--pin PIN], pull --password < file",
        "-- token x, ---token x, a--token x, -----BEGIN",
        "-- -- -- ----",
    ] {
        assert_eq!(masked(plain), plain);
    }
}

#[test]
fn blocks_of_yaml_are_values() {
    for (raw, expected) in [
        ("password: !!str &a |\n  CANARY\nn: x", "password: !!str &a |\n  [redacted]\nn: x"),
        ("password: |\n  CANARY\n  CANARY\nn: x", "password: |\n  [redacted]\nn: x"),
        ("a:\n  secret: >-\n\n    CANARY\n\n      CANARY\n\n  n: x", "a:\n  secret: >-\n\n    [redacted]\n\n  n: x"),
        ("- token: |2+ \r\n    CANARY\r\n  n: x\r\n", "- token: |2+ \r\n    [redacted]\r\n  n: x\r\n"),
        ("\"token\": >\n  CANARY \"CANARY\"", "\"token\": >\n  [redacted]"),
        (
            "- name: api_key\n  value: |\n    CANARY: CANARY\n- name: n",
            "- name: api_key\n  value: |\n    [redacted]\n- name: n",
        ),
        (r#"{"y":"pin: |\n  C\\nANARY\n  \"CANARY\"\nn: x","n":"x"}"#, r#"{"y":"pin: |\n  [redacted]\nn: x","n":"x"}"#),
        ("passwords:\n  - CANARY\n  - CANARY: CANARY\nn:\n  - x", "passwords:\n  [redacted]\nn:\n  - x"),
        ("a:\n  tokens:\n  - CANARY\n\n  - CANARY\n  n: x", "a:\n  tokens:\n  [redacted]\n  n: x"),
        (r#"{"y":"tokens:\n- CANARY\n- CANARY\nn: x"}"#, r#"{"y":"tokens:\n[redacted]\nn: x"}"#),
        ("pin: - x", "pin: [redacted] x"),
        (r#"{"y":"a:\r\n  pin: |\r\n    CANARY","n":"x"}"#, r#"{"y":"a:\r\n  pin: |\r\n    [redacted]","n":"x"}"#),
        ("n: |\n  kept\npassword: |\nn: x", "n: |\n  kept\npassword: [redacted]\nn: x"),
        ("password: |x\n  kept", "password: [redacted]\n  kept"),
    ] {
        assert_eq!(masked(raw), expected);
    }
}

#[test]
fn parameters_of_a_scheme_are_one_value() {
    let digest = r#"Digest username="CANARY", uri="/x", nc=1, response="CANARY""#;
    for (raw, expected) in [
        (format!("Authorization: {digest}\r\nn: x"), "Authorization: [redacted]\r\nn: x"),
        (format!("sent proxy-authorization={digest}"), "sent proxy-authorization=[redacted]"),
        (format!("<h>Authorization: {digest}</h>"), "<h>Authorization: [redacted]</h>"),
        (
            serde_json::json!({"h": format!("Authorization: {digest}\r\nn: x"), "n": "x"}).to_string(),
            r#"{"h":"Authorization: [redacted]\r\nn: x","n":"x"}"#,
        ),
        ("Authorization: hmac id=1, ts=2, mac=CANARY\nn: x".to_owned(), "Authorization: [redacted]\nn: x"),
        (r#"Authorization: hmac id=1, mac="CANARY" x"#.to_owned(), "Authorization: [redacted] x"),
        (
            r#"{"h":"authorization: hmac id=1, mac=CANARY","n":"x"}"#.to_owned(),
            r#"{"h":"authorization: [redacted]","n":"x"}"#,
        ),
        ("Authorization: ApiKey CANARY=, next".to_owned(), "Authorization: [redacted], next"),
        ("authorization: basic Q0FOQVJZ==, status=200".to_owned(), "authorization: [redacted], status=200"),
        ("Digest: sha-256=abc".to_owned(), "Digest: sha-256=abc"),
        (r#"Authorization: Hawk id="CANARY", mac="CANARY""#.to_owned() + "\nn: x", "Authorization: [redacted]\nn: x"),
        (
            serde_json::json!({"h": r#"authorization: OAuth oauth_token="CANARY", x="CANARY""#, "n": "x"}).to_string(),
            r#"{"h":"authorization: [redacted]","n":"x"}"#,
        ),
    ] {
        assert_eq!(masked(&raw), expected);
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in r#"([a-z"'\\:=<>{}\[\],&/@ é|\n-]|token|password|name|value|id=|&a !b |string\\(1\\) |://|\\u00|--pin |pin: \||\\n  |Authorization: Digest ){0,60}"#) {
        masked(&text);
    }

    #[test]
    fn masked_json_is_json(value in "[ -~é]{0,30}", other in "[ -~é]{0,30}", depth in 0usize..3) {
        let mut text = serde_json::json!({"token": format!("CANARY{value}"), "other": other}).to_string();
        for _ in 0..depth {
            text = serde_json::json!({"inner": text}).to_string();
        }
        let text = masked(&text);
        prop_assert!(!text.contains("CANARY"), "{}", text);
        prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
    }
}

#[test]
fn a_text_of_any_pattern_is_looked_through_once() {
    for unit in [
        "--token ",
        "--token '\" ",
        "--pin \\\"",
        "--",
        "--a=",
        "token=1 ",
        "pin=>",
        "\"pin\"=>\"",
        "pin: |\n",
        "pin: |   ",
        "tokens:\n- ",
        "tokens:\n- x\n",
        "tokens:\n - tokens:\n",
        "password: <b>",
        "password: <b",
        "<th>pin</th><td>",
        "<th>pin</th>   ",
        "<th>pin",
        "auth=('",
        "pin:\n a: ",
        "pin:\n  x: y\n",
        "pin=a)",
        "\npin=a)b",
        "pin: (string) (len=",
        "pin:[]x",
        "<pin>x<!",
        "pin: '''",
        "pin: 'x''",
        "pin:\\n",
        "pin:\\\\\\\\\\\\",
        "pin: |\n  x\n",
        "pin: |\n\n\n",
        "\"pin: |\n  x\"",
        "\"pin: |\n  x\n",
        "pin: |\\n",
        "\"pin: |\\n  x\"",
        "\"pin: |\\n  x\\\\\"",
        "\"pin: >\\n  x\\\"",
        "{\"a\":\"pin: |\\n  x\",",
        "authorization: digest \"",
        "authorization: digest x\\n",
        "\"authorization: digest \\\"x",
        "authorization: hawk id=\"",
        "cookie: Some(\n\"",
        "pin=new S(\n",
        "pin='''x",
        "pin: !a ",
        "pin: &",
        "authorization: x y=z,",
        "authorization: x y=z, y=",
        "[\"pin\"]=>string(1",
        "<a key=\"pin\"",
        "<a key=\"pin\">",
        "<p id=\"pin\">x ",
        "<p id=\"pin\" >>>>>>>>>>>>>>>>>>>>>>>>>>>>>>",
        "pin: &a;",
        "pin: !a>",
    ] {
        let before = thread_time();
        masked(&format!("{}\\\"", unit.repeat((256 << 10) / unit.len())));
        let took = thread_time() - before;
        eprintln!("{unit:?} {took:?}");
        // Less than a second even without optimization; several where each place is a reason to look at all others.
        assert!(took < Duration::from_secs(3), "{unit:?}: {took:?}");
    }
}
