# ingest, tokenize: reading data sets. Included by serving/cli/CMakeLists.txt.
backstory_library(cli_ingest_common
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/ingest_common.cc ${CMAKE_CURRENT_LIST_DIR}/ingest_common.h
  DEPS backstory_import cli_common absl::status absl::statusor absl::strings)

# Corpus and shards, apart from the command line and from any store implementation.
backstory_library(cli_token_shards
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/tokenize_columns.cc ${CMAKE_CURRENT_LIST_DIR}/tokenize_columns.h
          ${CMAKE_CURRENT_LIST_DIR}/tokenize_corpus.cc ${CMAKE_CURRENT_LIST_DIR}/tokenize_corpus.h
          ${CMAKE_CURRENT_LIST_DIR}/tokenize_shard.cc ${CMAKE_CURRENT_LIST_DIR}/tokenize_shard.h
  DEPS backstory_features backstory_import backstory_item_counts backstory_safetensors backstory_golden
       absl::flat_hash_map)

# Files into a store, against the interfaces alone.
backstory_library(cli_ingest_run
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/ingest_run.cc ${CMAKE_CURRENT_LIST_DIR}/ingest_run.h
  DEPS backstory_import absl::flat_hash_map Threads::Threads)

backstory_library(cli_synth_users
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/synth_files.cc ${CMAKE_CURRENT_LIST_DIR}/synth_files.h
          ${CMAKE_CURRENT_LIST_DIR}/synth_tables.h ${CMAKE_CURRENT_LIST_DIR}/synth_user.cc
          ${CMAKE_CURRENT_LIST_DIR}/synth_user.h
  DEPS backstory_import backstory_hash absl::status absl::statusor absl::strings)
backstory_library(cli_synth
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/synth_command.cc ${CMAKE_CURRENT_LIST_DIR}/synth_command.h
  DEPS cli_ingest_common cli_synth_users)

backstory_test(cli_synth_test SOURCES ${CMAKE_SOURCE_DIR}/tests/cli/synth_test.cc DEPS cli_synth_users
  LABELS tier1 asan)

# The commands that open a store.
if(TARGET store)
  backstory_library(cli_ingest
    SOURCES ${CMAKE_CURRENT_LIST_DIR}/ingest_command.cc ${CMAKE_CURRENT_LIST_DIR}/ingest_command.h
    DEPS cli_ingest_common cli_ingest_run store)
  backstory_library(cli_tokenize
    SOURCES ${CMAKE_CURRENT_LIST_DIR}/tokenize_command.cc ${CMAKE_CURRENT_LIST_DIR}/tokenize_command.h
    DEPS cli_ingest_common cli_token_shards backstory_grab_config store)
  backstory_test(cli_ingest_tokenize_test SOURCES ${CMAKE_SOURCE_DIR}/tests/cli/ingest_tokenize_test.cc
    DEPS cli_ingest cli_synth cli_tokenize)
endif()
