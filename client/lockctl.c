/* lockctl.c - the program: global options, the table of commands, and what all commands share.
 *
 * Place in the flow:  shell -> [lockctl] -> liblockclient -> lockd.  What is printed on standard output is the answer
 * and nothing else; everything for people goes to standard error and says what to do. */
#include "client/lockctl.h"
#include "common/must.h"
#include "common/slice.h"
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct command {
    const char *name;
    lockctl_fn *fn;
    const char *arguments, *summary, *help;
} commands[] = {
    {"get", lockctl_get, "KEY [--with-version]", "print the value of a key",
     "Prints the value of KEY; exits 1 when there is none.\n"
     "  --with-version   print 'VERSION VALUE', for cas\n"},
    {"set", lockctl_set, "KEY VALUE [--ttl MS] [--nx | --xx]", "set a key",
     "Sets KEY to VALUE.  Write -- before a VALUE that begins with a dash.\n"
     "  --ttl MS   the key lives for MS milliseconds\n"
     "  --nx       only if it does not exist (else exits 1)\n"
     "  --xx       only if it exists (else exits 1)\n"},
    {"cas", lockctl_cas, "KEY VERSION VALUE", "set a key if its version is VERSION",
     "Sets KEY to VALUE if its version is still VERSION (0: it must not exist) and prints the new version.\n"
     "Otherwise exits 1 and prints 'VERSION VALUE' as they are.  'get --with-version' tells the version.\n"},
    {"wor", lockctl_wor, "get NAME | set NAME VALUE", "read or write a write-once register",
     "The first 'wor set' of a NAME wins for ever.  Both print the value that NAME has.\n"
     "  set   exits 0 if this call wrote it, 1 if another value or call was first\n"
     "  get   exits 1 if nothing was written yet\n"},
    {"lock", lockctl_lock, "NAME [--ttl MS] [--wait MS] [--grace MS] -- COMMAND [ARGUMENT...]",
     "run a command while holding a lock",
     "Takes the lock NAME, runs COMMAND, releases the lock and exits with the status of COMMAND (128 + N: signal N).\n"
     "COMMAND finds HOLDFAST_TOKEN (the fencing token), HOLDFAST_LOCK and HOLDFAST_SERVER in its environment.\n"
     "When the lock is lost, and when lockctl is killed or stopped, COMMAND and its process group are ended before\n"
     "another holder can be granted: SIGTERM, then SIGKILL.  lockctl then exits 5.\n"
     "  --ttl MS     how long the lock outlives a holder that vanished (default 10000; 1000..86400000)\n"
     "  --wait MS    give up after MS (exit 1); 0: do not wait; default: wait for ever\n"
     "  --grace MS   between SIGTERM and SIGKILL (default: a tenth of the ttl, 500 at most)\n"},
    {"elect", lockctl_elect, "NAME [--ttl MS] [--value TEXT] [--grace MS] [--once] -- COMMAND [ARGUMENT...]",
     "run a command on one machine of many",
     "Campaigns for the election NAME for ever, and runs COMMAND while it leads.  When COMMAND exits, resigns, so "
     "that\n"
     "the next candidate starts at once, and exits with its status.  When the lead is lost, COMMAND is ended as by\n"
     "'lockctl lock', and the campaign goes on.  The environment is that of 'lockctl lock'.\n"
     "  --ttl MS       how long a lead outlives a leader that vanished (default 5000; 1000..86400000)\n"
     "  --value TEXT   who leads, for ELECT.LEADER (default: host:pid)\n"
     "  --grace MS     between SIGTERM and SIGKILL (default: a tenth of the ttl, 500 at most)\n"
     "  --once         exit 5 when the lead is lost, instead of campaigning again\n"},
    {"route", lockctl_route, "get POOL SESSION | move POOL SESSION TARGET [--force]", "see or move a session's binding",
     "get prints the backend a session is bound to, its epoch and its shard; exits 1 when it is not bound.\n"
     "move binds it to TARGET, a member of its shard, once every proxy has let go of it.\n"
     "  --force   also when the present backend is in service\n"},
    {"status", lockctl_status, "[--verbose]", "show every node",
     "Asks each address of --server for its NODE.STATUS.  Exits 0 if some node knows a leader, else 3.\n"
     "  --verbose   all that the nodes say\n"},
    {"raw", lockctl_raw, "WORD...", "send any command",
     "Sends the words as one command and prints the reply.\n"
     "It is sent once: exits 4 when it may have run.\n"},
};
enum { COMMAND_COUNT = sizeof commands / sizeof commands[0] };

static const struct command *find(const char *name) {
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(commands[i].name, name) == 0) return &commands[i];
    }
    return NULL;
}

/* ---- shared ---- */

static void complain_list(const char *format, va_list arguments) {
    fputs("lockctl: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

void complain(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    complain_list(format, arguments);
    va_end(arguments);
}

int usage_error(const char *command, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    complain_list(format, arguments);
    va_end(arguments);
    fprintf(stderr, "Try 'lockctl %s%s--help'.\n", command, command[0] != '\0' ? " " : "");
    return EXIT_USAGE;
}

int show_help(const char *command) {
    const struct command *c = find(command);
    must(c != NULL);
    printf("lockctl %s %s\n\n%s", c->name, c->arguments, c->help);
    return EXIT_OK;
}

bool parse_ms(const char *command, const char *option, const char *text, uint64_t least, uint64_t most,
              uint64_t *ret_ms) {
    uint64_t value;
    if (!slice_to_u64(slice_str(text), &value) || value < least || value > most) {
        usage_error(command, "%s '%s' is not a number of milliseconds from %llu to %llu", option, text,
                    (unsigned long long)least, (unsigned long long)most);
        return false;
    }
    *ret_ms = value;
    return true;
}

struct lockclient *open_client(const struct lockctl *ctl, struct event_base *base) {
    struct lockclient *c;
    const struct lockclient_config config = {
        .addresses = ctl->server, .base = base, .name = "lockctl", .command_timeout_ms = ctl->timeout_ms};
    if (lockclient_new(&config, &c) != 0) {
        complain("%s; give --server host:port,... or HOLDFAST_SERVER", lockclient_error_text());
        return NULL;
    }
    return c;
}

int explain(const struct lockctl *ctl, enum lockclient_result result, const struct redisReply *reply) {
    const char *words = reply != NULL && reply->str != NULL ? reply->str : NULL;
    switch (result) {
    case LOCKCLIENT_REPLY: complain("%s", words != NULL ? words : "refused"); return EXIT_REFUSED;
    case LOCKCLIENT_NOT_RUN:
        if (words != NULL)
            complain("not executed: %s; see 'lockctl status'", words);
        else
            complain("not executed: no node could be reached at %s; see 'lockctl status'", ctl->server);
        return EXIT_NOT_RUN;
    case LOCKCLIENT_UNCERTAIN:
        complain("it may or may not have been executed%s%s; look before you repeat it", words != NULL ? ": " : "",
                 words != NULL ? words : "");
        return EXIT_UNCERTAIN;
    }
    return EXIT_UNCERTAIN;
}

int ask_lockd(struct lockclient *c, const struct lockctl *ctl, unsigned flags, int argc, const char *const *argv,
              struct redisReply **ret_reply) {
    struct redisReply *reply = NULL;
    const enum lockclient_result result = lockclient_call(c, flags, ctl->timeout_ms, argc, argv, NULL, &reply);
    if (result == LOCKCLIENT_REPLY && reply->type != REDIS_REPLY_ERROR) {
        *ret_reply = reply;
        return EXIT_OK;
    }
    const int code = explain(ctl, result, reply);
    if (reply != NULL) freeReplyObject(reply);
    return code;
}

int odd_reply(const char *command) {
    complain("the server's answer to %s has an unknown shape; is it lockd?", command);
    return EXIT_REFUSED;
}

void print_value(const struct redisReply *value) {
    if (value->type == REDIS_REPLY_INTEGER) {
        printf("%lld\n", value->integer);
    } else {
        fwrite(value->str, 1, value->str != NULL ? value->len : 0, stdout);
        putchar('\n');
    }
}

/* ---- the program ---- */

static int help(void) {
    puts("lockctl [--server HOST:PORT,...] [--timeout MS] COMMAND ...\n\nCommands of the lock service Holdfast:");
    for (size_t i = 0; i < COMMAND_COUNT; i++) printf("  %-7s %s\n", commands[i].name, commands[i].summary);
    puts("\n  --server HOST:PORT,...   any of the nodes (default: HOLDFAST_SERVER, else 127.0.0.1:7400)\n"
         "  --timeout MS             for one command (default 15000; status: 2000)\n"
         "  --version\n"
         "\n'lockctl COMMAND --help' says more.  Exit codes: 0 done; 1 refused, absent or held by another; 2 usage;\n"
         "3 not executed (no node reached); 4 perhaps executed; 5 the lock was lost while the command ran.");
    return EXIT_OK;
}

static bool wants_help(int argc, char **argv) {
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
    }
    return false;
}

static int run(const struct lockctl *ctl, int argc, char **argv) {
    if (argc == 0) return usage_error("", "a command is missing");
    const struct command *command = find(argv[0]);
    if (command == NULL) return usage_error("", "unknown command '%s'", argv[0]);
    if (command->fn != lockctl_raw && wants_help(argc, argv)) return show_help(command->name);
    if (command->fn == lockctl_raw && argc == 2 && wants_help(argc, argv)) return show_help(command->name);
    optind = 0; /* begin anew, with permutation */
    return command->fn(ctl, argc, argv);
}

/* A pipe or socket must not take the place of a standard descriptor that the caller has closed. */
static void open_standard_descriptors(void) {
    int fd;
    do fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd > STDERR_FILENO) close(fd);
}

int main(int argc, char **argv) {
    enum { OPTION_SERVER = 1, OPTION_TIMEOUT, OPTION_HELP, OPTION_VERSION };
    static const struct option options[] = {{"server", required_argument, NULL, OPTION_SERVER},
                                            {"timeout", required_argument, NULL, OPTION_TIMEOUT},
                                            {"help", no_argument, NULL, OPTION_HELP},
                                            {"version", no_argument, NULL, OPTION_VERSION},
                                            {0}};
    const char *environment = getenv("HOLDFAST_SERVER");
    struct lockctl ctl = {.server = environment != NULL && environment[0] != '\0' ? environment : "127.0.0.1:7400"};
    uint64_t timeout_ms;
    int option;
    open_standard_descriptors();
    while ((option = getopt_long(argc, argv, "+h", options, NULL)) != -1) {
        switch (option) {
        case OPTION_SERVER: ctl.server = optarg; break;
        case OPTION_TIMEOUT:
            if (!parse_ms("", "--timeout", optarg, 1, 86400000, &timeout_ms)) return EXIT_USAGE;
            ctl.timeout_ms = (uint32_t)timeout_ms;
            break;
        case 'h':
        case OPTION_HELP: return help();
        case OPTION_VERSION: puts("lockctl " HOLDFAST_VERSION); return EXIT_OK;
        default: fputs("Try 'lockctl --help'.\n", stderr); return EXIT_USAGE;
        }
    }
    const int code = run(&ctl, argc - optind, argv + optind);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        complain("cannot write to standard output");
        return code == EXIT_OK ? EXIT_REFUSED : code;
    }
    return code;
}
