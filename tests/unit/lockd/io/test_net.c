/* Addresses are what they look like, or the message says what is wrong with them; sockets say what is in the way.
 * Guards common/io/net.h. */
#include <check.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/io/net.h"

static char error[NET_ERROR_BYTES];

static const struct {
    const char *text, *host; /* host NULL: refused */
    uint16_t port;
    bool numeric;
} rows[] = {
    {"127.0.0.1:7400", "127.0.0.1", 7400, true},
    {"[::1]:1", "::1", 1, true},
    {"name:65535", "name", 65535, false},
    {"a.b-c_d.example:80", "a.b-c_d.example", 80, false},
    {"127.0.0.1", NULL, 0, false},
    {":80", NULL, 0, false},
    {"", NULL, 0, false},
    {"a:", NULL, 0, false},
    {"a:65536", NULL, 0, false},
    {"a:-1", NULL, 0, false},
    {"a:08", NULL, 0, false},
    {"a:1 ", NULL, 0, false},
    {"::1:80", NULL, 0, false},
    {"[::1]80", NULL, 0, false},
    {"[::1", NULL, 0, false},
    {"[:80", NULL, 0, false},
    {"[name]:80", NULL, 0, false},
    {"a b:80", NULL, 0, false},
    {"a:99999999999999999999", NULL, 0, false},
    {"unix/path:1", NULL, 0, false},
    {"a:0", NULL, 0, false},
};
START_TEST(an_address_is_parsed_or_refused) {
    struct net_address a;
    const int result = net_parse(rows[_i].text, false, &a, error, sizeof error);
    ck_assert_msg(result == (rows[_i].host == NULL ? -1 : 0), "\"%s\": %s", rows[_i].text, error);
    if (rows[_i].host == NULL) return;
    ck_assert_str_eq(a.host, rows[_i].host);
    ck_assert_uint_eq(a.port, rows[_i].port);
    ck_assert_int_eq(a.numeric, rows[_i].numeric);
}
END_TEST

START_TEST(equal_is_by_meaning) {
    struct net_address a, b;
    ck_assert_int_eq(net_parse("[::1]:80", false, &a, error, sizeof error), 0);
    ck_assert_int_eq(net_parse("[0:0::1]:80", false, &b, error, sizeof error), 0);
    ck_assert(net_equal(&a, &b));
    ck_assert_int_eq(net_parse("Name:80", false, &a, error, sizeof error), 0);
    ck_assert_int_eq(net_parse("nAME:80", false, &b, error, sizeof error), 0);
    ck_assert(net_equal(&a, &b));
    ck_assert_int_eq(net_parse("name:81", false, &b, error, sizeof error), 0);
    ck_assert(!net_equal(&a, &b));
}
END_TEST

START_TEST(a_port_in_use_is_named) {
    struct net_address a;
    struct sockaddr_in in;
    socklen_t bytes = sizeof in;
    char name[NET_NAME_BYTES];
    int first, second = -1;
    ck_assert_int_eq(net_parse("127.0.0.1:0", true, &a, error, sizeof error), 0);
    ck_assert_int_eq(net_bind(&a, &first, error, sizeof error), 0);
    ck_assert_int_eq(net_listen(first, error, sizeof error), 0);
    net_local_name(first, name);
    ck_assert_int_eq(net_parse(name, false, &a, error, sizeof error), 0);
    ck_assert_int_eq(net_bind(&a, &second, error, sizeof error), -1);
    ck_assert_msg(strstr(error, name) != NULL && strstr(error, "in use") != NULL, "%s", error);
    ck_assert_int_eq(second, -1);
    /* and there one can connect */
    ck_assert_int_eq(getsockname(first, (struct sockaddr *)&in, &bytes), 0);
    ck_assert_int_eq(net_connect((struct sockaddr *)&in, bytes, &second), 0);
    struct pollfd wait = {.fd = second, .events = POLLOUT};
    ck_assert_int_eq(poll(&wait, 1, 5000), 1);
    ck_assert_int_eq(net_socket_error(second), 0);
    char peer[NET_NAME_BYTES];
    net_peer_name(second, peer);
    ck_assert_str_eq(peer, name);
    close(first);
    close(second);
}
END_TEST

START_TEST(an_address_of_another_machine_is_named) {
    struct net_address a;
    int fd = -1;
    ck_assert_int_eq(net_parse("192.0.2.1:7400", false, &a, error, sizeof error), 0);
    ck_assert_int_eq(net_bind(&a, &fd, error, sizeof error), -1);
    ck_assert_msg(strstr(error, "192.0.2.1:7400") != NULL, "%s", error);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("net");
    TCase *tc = tcase_create("net");
    tcase_add_loop_test(tc, an_address_is_parsed_or_refused, 0, sizeof rows / sizeof *rows);
    tcase_add_test(tc, equal_is_by_meaning);
    tcase_add_test(tc, a_port_in_use_is_named);
    tcase_add_test(tc, an_address_of_another_machine_is_named);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_ENV);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? 0 : 1;
}
