/* What only the stand-in has: where its tokens come from, and how it is made to misbehave. C interface. */
#ifndef CUELIGHT_STANDIN_H
#define CUELIGHT_STANDIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One sequence in one step. Everything is valid during the call only. */
typedef struct cuelight_standin_row {
    uint64_t sequence;     /* id that no other sequence of this process has */
    const int32_t* tokens; /* prompt and output so far */
    size_t tokens_len;
    size_t prompt_len;
    size_t known_len;      /* tokens of them that the call before had; 0 in the sequence's first call */
    float* logits;         /* `vocab` numbers to be filled in, or NULL if nobody looks at them */
    size_t vocab;
    int32_t token;         /* out: the next token, used if logits is NULL */
    float logprob;         /* out: its natural log probability, used if logits is NULL */
} cuelight_standin_row;

/* Computes the next tokens of a batch. Anything but 0 fails the whole step (a forward error).
 * Called from the executor's own thread, never at once for one executor. It must not throw or unwind. */
typedef int (*cuelight_standin_forward)(void* user, const char* model, cuelight_standin_row* rows, size_t rows_len);

/* The sequence has ended. From the same thread. */
typedef void (*cuelight_standin_forget)(void* user, const char* model, uint64_t sequence);

/* Tokens of executors that are constructed from now on come from `forward`; from the built-in rule if it is NULL.
 * `user` must live as long as they do. */
void cuelight_standin_source(cuelight_standin_forward forward, cuelight_standin_forget forget, void* user);

/* Sets an option for this process, also for executors that live already (as far as they still look at it).
 * The same options are read, with less weight, from the variable CUELIGHT_STANDIN ("key=value,key=value") and
 * from the file standin.conf (a line each) in the model's folder. 0, or -1 for a key or value that is none. */
int cuelight_standin_set(const char* key, const char* value);

/* Forgets what was set, and lets engines go on that hang. */
void cuelight_standin_reset(void);

/* Names of all options, separated by commas. */
const char* cuelight_standin_options(void);

#ifdef __cplusplus
}
#endif
#endif
